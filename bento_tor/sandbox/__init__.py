"""The sandbox: a specification becomes a running jailed interpreter, and its end becomes an outcome.

frames, wire, spec, driver   pure: what is said to whom, and what a sandbox is made of
images, bytecode             what a function sees
jail, cell                   starts sandboxes; one running sandbox. With them: plumbing, cgroups,
                                 hierarchies, delegation, uids
outer, seccomp               what is arranged around bubblewrap, and the system calls that stay
trial, layers, probe         one function run to see that all this works here; what holds here, layer by layer
pool                         sandboxes that wait for code
keeper, link                 the process that may use a jail; the box's way to it
mounts                       directories of ours, shown to processes that are not root
"""
