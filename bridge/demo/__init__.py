"""The demonstration: a DNS policy in Lua, real traffic, and proof of what happened.

``scenario`` does it in the kernel it runs on, ``stream`` asks questions while the
policy is changed, ``command`` starts it in the lab and shows it.
"""
