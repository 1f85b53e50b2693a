"""From weights to codes and scales."""
