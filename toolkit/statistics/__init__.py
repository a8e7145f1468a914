"""Statistics of classification that several packages need; no module imports another."""
