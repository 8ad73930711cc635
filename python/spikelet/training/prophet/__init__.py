"""Prophets: small networks that guess what a model will say next, for speculative decoding.

A prophet lives in the folder ``prophet`` of the model it was trained for. It only proposes: what
it says decides how fast text comes, never which text.
"""
