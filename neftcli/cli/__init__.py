"""What a person types and sees: one file a command, and the displays. No torch here."""
