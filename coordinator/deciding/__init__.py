"""What a coordinator decides: events in, effects out. No sockets, no arrays, no clock."""
