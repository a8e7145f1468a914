"""The workshops behind the five scripts, and the ground floor that they share."""
