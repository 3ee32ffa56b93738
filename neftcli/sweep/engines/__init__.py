"""Engines that run the cells of a sweep: worker processes on this machine, or tasks of a Ray cluster."""
