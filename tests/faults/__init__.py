"""What a run survives: killed processes, full disks, power cuts, strangers, bad networks. Not part of the wheel."""
