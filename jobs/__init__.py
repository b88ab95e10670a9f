"""The jobs, and the path of the data, table by table.

    feed (JSONL, CSV, Parquet, Delta)
      curate_catalog    Spark     feed                       -> listings, rejects, products, images
      embed_images      Ray Data  images                     -> fetches, checks, features
      group_duplicates  Spark     features                   -> duplicates
      catalog_doctor    Spark     all of the above           -> report page: what is wrong in the catalog
      train_looks       torch     products, features, links  -> looks: what goes with what (only where there are links)
      train_index       Ray       products, images, features -> templates, plan of the release
      build_shards      Ray       plan, features             -> shards of the release
      evaluate_index    FAISS     shards, queries            -> nprobe, hash thresholds, recall: the gate
      publish_release   MLflow    all of it                  -> manifest (last), champion

`nightly` runs them in that order. `train_ranker` learns the ranking from `feedback`. `evaluate_search` asks a running endpoint
questions with known answers. `plan_capacity` says what any number of photos would cost.
`render_catalog`, `train_encoder`, `train_detector` make the generated catalog and the bundle trained on it.
"""
