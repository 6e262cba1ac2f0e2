"""SQL, in one place: each module is about one thing, each function is a query or a change with its meaning.

Every function works inside the transaction of the connection that it is given.
"""
