"""`cliploc audit`: does a model look at the thing, or at what stands around it?"""
