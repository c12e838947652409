"""A loop that works for as long as it is let, on all that a loop can do, and is counted every minute: what has grown?

    python -m integration.soak --seconds 1800

`lives` has what comes and goes, `world` where it does so, `census` what is counted. Outside CI, for it takes its time.
"""
