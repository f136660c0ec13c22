"""What a run takes before it is made: memory, operations, hours, disk; from shapes alone."""
