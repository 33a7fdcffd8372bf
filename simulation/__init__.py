"""Production cores of coordinator and actors on a simulated network and disk. Not part of the wheel."""
