"""Laws that hold whatever the model, the adapter or the layout of a batch."""
