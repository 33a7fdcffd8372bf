"""Aggregators that stand around another one: bounds, compression, changes of weights."""
