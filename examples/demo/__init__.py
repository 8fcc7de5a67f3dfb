"""Trains two small models with torch's ops and with pyext's: `python -m examples.demo`."""
