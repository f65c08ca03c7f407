"""External reference catalogues over the network, kept by regions of the sky.

cells       the sky in fixed regions
cache       what a service said of a region, and which services are down
protocols   TAP and VizieR: one query, one table, or one typed error
definitions the catalogues: table, columns, what becomes of them
services    the five together: from the cache, else from the service
"""
