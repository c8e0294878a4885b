"""The front end: PTX text to a decoded program; anything unknown is an error that names its line."""
