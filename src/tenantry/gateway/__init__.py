"""The doors agents come in by: each turns a dialect into an Action and a Verdict back into the dialect."""
