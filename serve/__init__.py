"""Answering queries: what a photo goes through, in order.

guard     `serve.api.guard`: body size, form and fields are checked before any work; the upload stays in memory
hash      `serve.api.cascade` → `serve.index.release.HashStage`: a reduced decode in a guarded process, the 256-bit hash of
          all eight turns and mirrorings, the colour signature; a hit answers "exact" with the stored embedding of the
          matched photo, and no network is run
analyse   `serve.api.query_encoder` → `serve.vision.bundle.Bundle.analyse`: the same function that embedded the catalog
          finds items, cuts crops, embeds them and predicts categories
search    `serve.api.shard_searcher` → `serve.index.release.ShardGroup`: every shard group is asked at the same time; one
          that does not answer makes the answer `partial`
fuse      `serve.index.search`: the best k distinct products over all crops, and each crop's own

`vision` and `index` are the kernel, used by the jobs as well: they know no Ray and no web framework. `api` is the thin
layer of Ray Serve deployments and HTTP around it, `page` the search page. `python -m serve --conf conf/local.yaml` starts
it all on one machine; `conf/serve.yaml` is for `serve deploy` on a cluster.
"""
