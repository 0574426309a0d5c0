"""What ``make bench`` measures, against other clients in the same minutes on the same machine."""
