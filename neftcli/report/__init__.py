"""What a sweep shows of itself: its plots (`plots.py`)."""
