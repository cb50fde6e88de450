"""The end of records: retention by age, and deletion by request."""
