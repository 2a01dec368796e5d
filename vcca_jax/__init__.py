"""Value-constrained credit assignment on traversal learning."""
