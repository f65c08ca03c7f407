"""An engine of our own behind the `Reduction` protocol: one module per step, pure functions on arrays.

Put here the steps of a reduction and what drives them. Keep out jwst and grizli (this engine needs neither), Dagster
and the database. Images are float32, shape (2048, 2048), y first; steps work exposure by exposure.
"""
