"""What a backbone is worth: linear, frozen and fine-tuned evaluation at few labels, against honest baselines."""
