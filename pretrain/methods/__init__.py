"""Self-supervised methods, one file each: a module whose ``forward(views, epoch)`` is the loss."""
