"""What the policies on torch share."""
