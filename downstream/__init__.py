"""What a backbone is worth: read off, trained and fine-tuned at few labels, against honest baselines."""
