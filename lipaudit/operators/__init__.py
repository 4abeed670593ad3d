"""What lipaudit knows about each operator."""
