"""What the loop has on other systems than Windows besides sockets.

`pipes` has the transports of pipes and terminals, `nonblocking` keeps others from noticing that they do not block,
`sigpipe` keeps the process alive. `processes` has the children, `signals` the handlers. `system` is what the loop
inherits.
"""
