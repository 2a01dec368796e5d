"""Is a cooperative the same on one device, on eight, and on several processes?"""
