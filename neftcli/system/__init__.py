"""The machine: device and arithmetic, settings of the process, its cache folder, and the libraries' chatter."""
