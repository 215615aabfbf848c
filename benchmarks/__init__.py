from tessera.runtime import process

process.prepare()  # before torch is loaded, as the stages do
