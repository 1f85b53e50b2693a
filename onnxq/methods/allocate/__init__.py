"""How many bits where: budgets spread over layers, and layers that are better left alone."""
