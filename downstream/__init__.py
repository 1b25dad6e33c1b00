"""What a backbone is worth: frozen and fine-tuned evaluation at few labels, against honest baselines."""
