"""Recommendations one event at a time: users' states, in memory and in files."""
