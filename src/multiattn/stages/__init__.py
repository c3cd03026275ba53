"""The doors, in the order data walks through them; each reads tables, calls rooms, writes tables."""
