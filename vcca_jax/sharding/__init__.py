"""The agent axis over a mesh of devices and over processes; parameters over a second axis.

The whole step stays what it is, one program on arrays seen whole: only the loss knows where the
samples are. ``sharded_loss`` runs a per-example loss on every device's own samples and hands back
losses, so what crosses a device's border are numbers a sample (losses and their derivatives along a
direction) and sums of gradients, which the compiler turns into all-reduces. Screens, estimators,
utilities and trainers run unchanged, and the operator of agent gradients with them.

    mesh = agent_mesh()
    members = shard_cooperative(own, mesh)
    trainer = sharded(cooperate(sharded_loss(loss_fn, mesh), optimizer, ...), mesh)
    plan = sharded_plan(virtual_batches(members, ...), members, mesh.size)
    state, info = jax.jit(trainer.step)(state, sharded_gather(members.shards, step, mesh))

| module | what it does |
| --- | --- |
| ``mesh`` | the mesh, and the layout of parameters and of a trainer's state on it |
| ``batch`` | who holds which samples, and a virtual batch that leaves them there |
| ``losses`` | losses of samples that stay where they are |
| ``rows`` | the one pass on rows that are spread |
"""
