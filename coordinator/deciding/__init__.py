"""A coordinator's decisions: events in, effects out. No sockets, no arrays, no clock."""
