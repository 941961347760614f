"""What is registered: tenants, workspaces, agents, tools, models."""
