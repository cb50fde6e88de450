"""Who may call: principals by their tokens, and the secrets of sessions that are derived from them."""
