"""Numbers that the processes of one program share: counters, gauges, and the board."""
