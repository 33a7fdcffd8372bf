"""Cases that hurt a run: killed processes, full disks, power cuts, strangers, bad networks. Not part of the wheel."""
