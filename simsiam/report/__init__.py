"""What the command `report` reads, computes and draws."""
