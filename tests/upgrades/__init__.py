"""What earlier releases have left behind, recorded."""
