"""Operating system and hardware: files, the cache folder, environment variables, network and hub, devices, processes.

Nothing here knows recipes, models or runs.
"""
