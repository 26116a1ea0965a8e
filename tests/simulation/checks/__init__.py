"""The invariants of the design (section 12) as functions from a history to complaints."""
