"""The machine: device and arithmetic (`device.py`), settings of the process (`process.py`), the libraries' chatter."""
