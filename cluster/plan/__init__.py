"""What a run takes on a cluster before there is one: time, memory, money (docs/scaling.md)."""
