"""Is a colour wrong when the catalog doctor says so, and how many does it find? On a store whose products have siblings.

Each product is examined as it is named, then named as each of its siblings. What is accused as it is named is to be looked at by
a person; of the planted ones all are wrong.

    python -m tests.bench.bench_colours --conf luma.yaml
"""

import json
import sys
from collections import Counter

from pyspark.sql import functions as F

from jobs.config import Config, run_job
from jobs.evaluation.colour_looks import confirmed
from jobs.evaluation.doctor_report import Example, Product
from jobs.spark import delta
from jobs.spark.catalog_faults import catalog_of, of_bundle
from jobs.spark.colour_faults import colour_suspects
from jobs.spark.session import spark_session
from jobs.tables import Tables
from serve.vision.bundle import assemble_bundle, bundle_digest


def run(config: Config) -> None:
    """Prints what is accused, and by planted colour how many of how many were found."""
    digest, tables = bundle_digest(assemble_bundle(config.bundle, config.store.bundles)), Tables(config.store.tables)
    spark = spark_session(config.spark, "bench_colours")
    products, images, fetches, features = (
        delta.read(spark, tables.path(n)) for n in ("products", "images", "fetches", "features")
    )
    catalog = catalog_of(products, images, fetches, digest)
    names = products.select("group_id", F.col("color").alias("other"))
    planted = catalog.join(names.distinct(), on="group_id", how="inner").where("color != other")
    planted = planted.withColumn("product_id", F.concat_ws(" as ", "product_id", "other")).drop("color")
    planted = planted.withColumnRenamed("other", "color").persist()
    wrong = Counter(
        {row["color"]: row["num"] for row in planted.groupBy("color").agg(F.count_distinct("product_id").alias("num")).collect()}
    )
    figures = {}
    for name, rows in (("as_named", catalog), ("planted", planted)):
        suspects = [
            Example(row["kind"], row["told"], tuple(Product(**shown.asDict()) for shown in row["shown"]))
            for row in colour_suspects(rows, features.where(of_bundle(digest))).collect()
        ]
        accused = [example.products[0] for example in confirmed(config, suspects)]
        figures[name] = {"suspected": len(suspects), "accused": len(accused)}
        if name == "as_named":
            figures[name]["products"] = [product.product_id for product in accused]
        else:
            found = Counter(product.says.removeprefix("color: ") for product in accused)
            figures[name]["found"] = {colour: f"{found[colour]} of {num}" for colour, num in wrong.most_common()}
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_job(__doc__ or "", run)
