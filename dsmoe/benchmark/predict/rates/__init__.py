"""Rates of clusters: data with their sources, what dsmoe calibrate measured, which one to take."""
